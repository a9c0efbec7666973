"""One file a family of layers; one short function a layer type. See camrt/train/registry.py."""
