"""ONNX files and the runtime that samples from them."""
