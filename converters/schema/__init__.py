"""Caffe's messages: `caffe.proto`, and `caffe_pb2` that `make schema` generates from it."""
