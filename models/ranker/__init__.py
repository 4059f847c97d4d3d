"""The multitask ranker: `scorer` and `calibration` serve (numpy and ONNX Runtime), the other modules train (torch)."""
