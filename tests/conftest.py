import torch

# The tensors of the tests are tiny; threads that wait for each other would only slow them down.
torch.set_num_threads(1)
