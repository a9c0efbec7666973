"""Builders of layers, one file per family, one function per layer type. See `camrt.train.registry`.

A family has the same name as in `converters.handlers`.
"""
