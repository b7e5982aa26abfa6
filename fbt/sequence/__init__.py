"""The loop of a shared-KV body as one autograd Function: see `function`."""
