"""Run a model without PyTorch: write it as ONNX, check it, open it with onnxruntime or OpenVINO."""
