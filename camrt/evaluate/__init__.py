"""How well maps localize: the ILSVRC protocol of the original, and today's protocols for weak supervision.

`journal` keeps results image by image, so that long runs can be killed and go on.
"""
