"""The gateway in front of TorchServe: keys, limits, audit, shadow and canary. See docs/serving.md."""
