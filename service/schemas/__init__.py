"""Requests and responses of the HTTP interface, in rooms of their own like the routes that take and give them."""
