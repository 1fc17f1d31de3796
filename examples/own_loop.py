"""Train a network of your own by AND in a plain PyTorch loop, on one rank or on several.

python examples/own_loop.py
torchrun --nproc-per-node=2 examples/own_loop.py     learns the same, each rank with half the bank
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

import and_dist

NUM_ROWS, CLASSES, PIXELS, DIM = 512, 8, 64, 32
ROUNDS, EPOCHS, BATCH, NEIGHBOURS, TAU = 2, 6, 64, 1, 0.1


def main() -> None:
    """Train for some rounds: instances first, then neighbourhoods of ever more anchors."""
    torch.manual_seed(0)
    labels_N = torch.arange(NUM_ROWS) % CLASSES  # only the last lines look at them
    images_N = torch.randn(CLASSES, PIXELS)[labels_N] + 1.5 * torch.randn(NUM_ROWS, PIXELS)
    network: nn.Module = nn.Sequential(nn.Linear(PIXELS, 256), nn.ReLU(), nn.Linear(256, DIM))
    rows_ND = normalize(torch.randn(NUM_ROWS, DIM), dim=1)
    with and_dist.open_world("cpu", threads=1) as world:
        start, stop = and_dist.shard_range(NUM_ROWS, world.rank, world.size)
        bank = and_dist.MemoryBank(rows_ND[start:stop], start, NUM_ROWS, update_rate=0.5)
        if world.size > 1:
            network = DistributedDataParallel(network)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        neighbours_NK = torch.full((NUM_ROWS, NEIGHBOURS), -1)  # -1: an instance has none
        for round_index in range(ROUNDS + 1):
            if round_index > 0:
                found = and_dist.discover(bank, world, round_index, ROUNDS, NEIGHBOURS, TAU)
                neighbours_NK = found.neighbours_NK
            for _ in range(EPOCHS):
                for rows_G in torch.randperm(NUM_ROWS).split(BATCH):
                    rows_B = rows_G.chunk(world.size)[world.rank]
                    features_BD = normalize(network(images_N[rows_B]), dim=1)
                    given = features_BD, rows_B, neighbours_NK[rows_B], bank, world
                    loss = and_dist.neighbourhood_nll(*given, temperature=TAU)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    features_GD = torch.empty(len(rows_G), DIM)
                    dist.all_gather_into_tensor(features_GD, features_BD.detach())
                    bank.update(rows_G, features_GD)  # each rank keeps the rows of its shard
            if world.is_coordinator:
                print(f"round {round_index}: loss {loss.item():.3f}")
        features_ND = normalize(network(images_N), dim=1)
        nearest_N = (features_ND @ features_ND.T).fill_diagonal_(-1).argmax(dim=1)
        if world.is_coordinator:
            share = (labels_N[nearest_N] == labels_N).float().mean().item()
            print(f"the nearest other image is of the same class for {share:.1%}")


if __name__ == "__main__":
    main()
