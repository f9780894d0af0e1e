"""From a finished cache to another one: which columns it is to have, its rows, what new codecs lose of them."""
