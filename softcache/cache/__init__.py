"""The asset on disk: manifest, shards, reading and writing them."""
