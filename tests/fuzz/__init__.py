"""Models, layers and tilings that are drawn at random, and what must hold for all of them."""
