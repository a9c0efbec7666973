"""Methods that only run the model: for any network that ONNX Runtime runs, whatever it is made of.

A method scores the image under masks and makes a map of the scores. `camrt.blackbox.session` gives it the interface of
an explainer graph, so that `camrt.Explainer` and the commands take it like any other method. It cannot be exported.
"""
