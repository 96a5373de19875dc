import subprocess
import sys

import torch
from torchvision.models import squeezenet1_1

from client.squeezenet import WIDTH, squeezenet_features


def test_with_the_same_weights_it_gives_the_same_bits_as_torchvisions():
    theirs = squeezenet1_1(weights=None).features.eval()
    ours = squeezenet_features().eval()
    ours.load_state_dict(theirs.state_dict())
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = ours(pictures)
        assert found.shape[1] == WIDTH
        assert torch.equal(found, theirs(pictures))


def test_reading_a_network_does_not_import_torchvision():
    code = "import sys, client.agent, client.features; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
