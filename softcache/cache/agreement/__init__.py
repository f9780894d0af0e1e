"""Does what is here agree with what a cache says: identity, data, digests, the teacher."""
