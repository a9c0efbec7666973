"""One handler a layer type, one module a family. `converters.registry` loads them when they are first needed."""
