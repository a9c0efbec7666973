"""The engines that run a model: a module each, behind `camrt.session.Session`."""
