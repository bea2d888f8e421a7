"""Words that generated stores draw their catalogs from: departments, their categories, and each category's products."""

from __future__ import annotations

# department -> category -> product nouns
DEPARTMENTS: dict[str, dict[str, str]] = {
    "Kitchen": {
        "Coffee": "espresso machine, burr grinder, french press, pour over kettle, milk frother, travel mug",
        "Bakeware": "loaf pan, muffin tin, baking sheet, pie dish, rolling pin, cooling rack",
        "Cookware": "frying pan, stock pot, dutch oven, wok, saucepan, grill pan",
        "Knives": "chef knife, paring knife, bread knife, sharpening stone, knife block, kitchen shears",
        "Tea": "teapot, loose leaf infuser, matcha whisk, tea tin, gaiwan set, electric kettle",
    },
    "Outdoor": {
        "Tents": "dome tent, tunnel tent, bivy shelter, tarp, ground sheet, tent pegs",
        "Sleeping": "sleeping bag, sleeping pad, camping pillow, hammock, bag liner, cot",
        "Hiking": "trekking poles, hiking boots, day pack, gaiters, hydration bladder, trail map case",
        "Climbing": "climbing harness, carabiner set, chalk bag, belay device, climbing rope, helmet",
        "Fishing": "spinning reel, fly rod, tackle box, lure set, landing net, wading boots",
    },
    "Cycling": {
        "Bike Parts": "chain, cassette, brake pads, derailleur, saddle, handlebar tape",
        "Bike Wear": "bib shorts, cycling jersey, arm warmers, cycling cap, wind vest, overshoes",
        "Bike Lights": "front light, rear light, wheel reflector, helmet light, dynamo hub, light mount",
    },
    "Beauty": {
        "Skin Care": "face serum, night cream, gel cleanser, clay mask, eye cream, toner",
        "Hair Care": "shampoo, conditioner, hair mask, leave in spray, hair oil, scalp scrub",
        "Makeup": "mascara, lipstick, brow pencil, setting powder, blush palette, liquid eyeliner",
        "Nails": "nail polish, cuticle oil, nail file, gel lamp, top coat, nail stickers",
        "Fragrance": "eau de parfum, body mist, cologne, perfume oil, scented balm, travel spray",
    },
    "Toys": {
        "Puzzles": "jigsaw puzzle, wooden puzzle, puzzle cube, brain teaser, floor puzzle, puzzle mat",
        "Board Games": "strategy game, card game, dice game, party game, cooperative game, trivia game",
        "Building": "brick set, magnetic tiles, marble run, gear kit, wooden blocks, train tracks",
        "Dolls": "fashion doll, doll house, baby doll, doll stroller, plush bear, puppet",
        "Model Kits": "aircraft kit, ship kit, paint set, airbrush, tank kit, modelling glue",
    },
    "Home": {
        "Lighting": "desk lamp, floor lamp, string lights, pendant light, night light, led bulb",
        "Bedding": "duvet cover, pillowcase, mattress topper, weighted blanket, fitted sheet, throw",
        "Storage": "storage basket, shoe rack, shelf unit, drawer organizer, hanging rail, storage box",
        "Cleaning": "spray mop, microfiber cloth, handheld vacuum, scrub brush, dustpan, window squeegee",
        "Candles": "scented candle, tealights, candle holder, wax melts, reed diffuser, incense sticks",
    },
    "Garden": {
        "Seeds": "tomato seeds, herb seeds, wildflower mix, lettuce seeds, sunflower seeds, pumpkin seeds",
        "Garden Tools": "pruning shears, hand trowel, garden fork, leaf rake, watering can, hose nozzle",
        "Planters": "ceramic pot, hanging planter, raised bed, window box, plant stand, grow bag",
        "Birds": "bird feeder, nest box, suet balls, bird bath, seed mix, feeder pole",
    },
    "Electronics": {
        "Audio": "headphones, bluetooth speaker, earbuds, turntable, soundbar, headphone amp",
        "Cameras": "mirrorless camera, prime lens, tripod, camera strap, memory card, lens filter",
        "Gaming": "game controller, gaming mouse, mechanical keyboard, headset, mouse pad, capture card",
        "Phone": "phone case, wireless charger, power bank, screen protector, usb cable, car mount",
        "Networking": "wifi router, mesh node, network switch, ethernet cable, range extender, nas drive",
    },
    "Sports": {
        "Yoga": "yoga mat, yoga block, yoga strap, bolster, meditation cushion, mat spray",
        "Running": "running shoes, running belt, gps watch, compression socks, running vest, headlamp",
        "Strength": "kettlebell, resistance bands, dumbbell pair, pull up bar, foam roller, weight plates",
        "Swimming": "swim goggles, swim cap, kickboard, pull buoy, swim fins, swim bag",
        "Racket": "tennis racket, badminton set, tennis balls, grip tape, squash racket, racket bag",
    },
    "Office": {
        "Stationery": "fountain pen, notebook, ink bottle, washi tape, sticky notes, pencil case",
        "Desk": "monitor arm, desk mat, laptop stand, cable tray, footrest, desk shelf",
        "Art": "watercolor set, sketchbook, acrylic paint, brush set, oil pastels, easel",
        "Crafts": "knitting needles, yarn ball, embroidery hoop, sewing kit, fabric scissors, crochet hooks",
    },
    "Pets": {
        "Dogs": "dog leash, dog bed, chew toy, dog harness, treat pouch, dog bowl",
        "Cats": "scratching post, cat tree, litter box, cat tunnel, feather wand, cat carrier",
        "Aquarium": "fish tank, aquarium filter, gravel, aquarium heater, tank light, water test kit",
    },
    "Grocery": {
        "Snacks": "trail mix, dark chocolate, rice crackers, dried mango, granola bars, roasted almonds",
        "Spices": "smoked paprika, curry powder, sea salt, vanilla pods, chili flakes, spice rack set",
        "Baby": "baby bottle, diaper bag, teether, swaddle, baby monitor, pacifier",
    },
}

# What a user's taste runs to: a style's words appear in the titles of the items that have it.
STYLES: dict[str, str] = {
    "eco": "organic, bamboo, recycled, natural, plant based",
    "premium": "luxury, handcrafted, signature, professional, titanium",
    "budget": "basic, value, everyday, essential, simple",
    "compact": "mini, portable, foldable, pocket, lightweight",
    "classic": "vintage, retro, heritage, traditional, antique",
    "bright": "neon, rainbow, colorful, floral, pastel",
    "dark": "matte black, midnight, charcoal, graphite, onyx",
    "sturdy": "heavy duty, waterproof, rugged, reinforced, all weather",
}

VARIANTS: tuple[str, ...] = (
    "blue",
    "green",
    "red",
    "white",
    "grey",
    "large",
    "small",
    "medium",
    "2 pack",
    "set of 4",
    "500 ml",
    "1 l",
    "deluxe",
    "pro",
    "plus",
    "kit",
)

BRAND_SYLLABLES: tuple[str, ...] = (
    "ka",
    "vo",
    "ra",
    "lu",
    "mi",
    "ten",
    "sol",
    "bri",
    "dor",
    "fen",
    "gal",
    "har",
    "jun",
    "kel",
    "lor",
    "mar",
    "nox",
    "ori",
    "pel",
    "quin",
    "ros",
    "sil",
    "tor",
    "ul",
    "ven",
    "wex",
    "yar",
    "zen",
)
