"""Export of a model to a file that adapts and recommends on any device: an ONNX graph, its catalogue, a runtime."""
