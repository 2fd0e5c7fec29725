"""Small models of other frameworks, as `package.module:name` finds them."""

import torch
from torch import nn

SHAPE = "1,1,8,8"


class Net(nn.Module):
    """Two convolutions, normalised, and a classifier; random weights, running statistics included."""

    def __init__(self, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 8, 3, padding=1, stride=2)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).flatten(1))


class Biased(nn.Module):
    """Answers differently from run to run, so that no import of it can agree."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.flatten(1) * float(self.calls)


def net():
    """Return a network with weights of its own."""
    torch.manual_seed(0)
    made = Net()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2)
    return made.eval()


def needs_a_width(width):
    """Return a network; cannot be called without an argument."""
    return Net(width)


def broken():
    """Fail, as a user's own code may."""
    raise ValueError("no such dataset")


class Runs:
    """Unpickled, this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').write('ran')",)
