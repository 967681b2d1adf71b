"""Drama's pictures: the parameters of the release, the sizes on the way, what the norm reads."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from statewise.worldmodels.decoder import ObsDecoder, ObsDecoderConfig
from statewise.worldmodels.encoder import ObsEncoder, ObsEncoderConfig


def space(side: int, channels: int = 3) -> spaces.Dict:
    return spaces.Dict(eye=spaces.Box(0, 255, (side, side, channels), np.uint8))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_both_have_as_many_parameters_as_those_of_the_release() -> None:
    encoder = ObsEncoder(space(64), ObsEncoderConfig(depth=16, pictures="drama"))
    decoder = ObsDecoder(1024, space(64), ObsDecoderConfig(depth=16, pictures="drama"))
    assert (count(encoder), encoder.d_out, count(decoder)) == (232_272, 1024, 1_281_811)


@pytest.mark.parametrize("layers", ["dreamer", "drama"])
@pytest.mark.parametrize("side", [8, 16, 64, 128])
def test_pictures_of_every_size_come_back_as_they_are_declared(side: int, layers: Any) -> None:
    encoder = ObsEncoder(space(side), ObsEncoderConfig(depth=2, pictures=layers))
    decoder = ObsDecoder(6, space(side), ObsDecoderConfig(depth=2, pictures=layers))
    obs = {"eye": torch.randint(256, (2, 3, side, side, 3), dtype=torch.uint8)}
    assert encoder(obs).shape == (2, 3, encoder.d_out)
    features = torch.randn(2, 3, 6)
    assert decoder(features)["eye"].shape == (2, 3, side, side, 3)
    assert decoder.loss(features, obs)["eye"].shape == (2, 3)
    dark, light = decoder.predict(1e4 * features)["eye"].aminmax()
    assert dark >= 0.0
    assert light <= 1.0


def test_the_norm_reads_the_batch_in_learning_and_nothing_but_the_picture_when_asked() -> None:
    torch.manual_seed(0)
    encoder = ObsEncoder(space(16), ObsEncoderConfig(depth=2, pictures="drama"))
    one, other = torch.randint(256, (2, 1, 16, 16, 3), dtype=torch.uint8)

    def read(*pictures: torch.Tensor) -> torch.Tensor:
        return encoder({"eye": torch.stack(pictures)})[0].detach()

    encoder.train()
    assert not torch.allclose(read(one, other), read(one, one))
    encoder.eval()
    assert torch.allclose(read(one, other), read(one, one), atol=1e-6)
