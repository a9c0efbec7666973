"""A static site that explains images in the browser: its builder, its files, and a local server to look at it.

``static/`` is what every site has: one HTML page, one style sheet, and one ES module, which is the page and its worker.
`camrt.web.site` puts the explainer graphs beside them, `camrt.web.runtime` knows the files of onnxruntime-web.
"""
