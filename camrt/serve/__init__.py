"""A server: the Open Inference Protocol for programs, ``POST /explain`` for images, and a page (extra ``serve``)."""
