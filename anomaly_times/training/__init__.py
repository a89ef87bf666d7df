"""How the weights that ship with the package were made; nothing here is needed to use them."""
