"""The interface, one file per capability."""
