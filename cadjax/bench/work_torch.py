"""The same work in PyTorch and MONAI; imported in their workers alone."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cadjax.bench.work import Work
from data_prep.errors import UserError
from data_prep.workers import available_cores

with warnings.catch_warnings():
  # MONAI's imports warn of deprecated names in other packages.
  warnings.simplefilter("ignore")
  from monai import transforms
  from monai.networks import nets

# What MONAI's network or this step does not do, by field of the config.
SAME = {
  "model.name": ("resnet",),
  "model.norm": ("batch",),
  "model.output_stride": (32,),
  "model.dtype": ("float32", "bfloat16"),
  "model.remat": (False,),
  "loss.name": ("focal", "cross_entropy"),
  "optimizer.name": ("adam",),
  "optimizer.accumulate": (1,),
  "ema_decay": (0.0,),
}


def train(spec: Mapping[str, Any]) -> Work:
  """Makes a train step like cadjax's, on a batch that is on the device."""
  config, device = _setup(spec)
  net = _net(spec, config, device).train()
  options = config["optimizer"]
  adam = torch.optim.Adam(
    net.parameters(),
    lr=options["learning_rate"],
    weight_decay=options["weight_decay"],
  )
  loss_fn = _loss(config["loss"])
  image, label = _batch(spec, config, device)

  def run() -> None:
    adam.zero_grad(set_to_none=True)
    with _precision(config, device):
      logits = net(_prepare(image, spec, config))
    loss_fn(logits.float(), label).backward()
    if options["clip_norm"]:
      torch.nn.utils.clip_grad_norm_(net.parameters(), options["clip_norm"])
    adam.step()
    _wait(device)

  return _work(run, spec, device)


def infer(spec: Mapping[str, Any]) -> Work:
  """Makes a forward pass with running statistics; logits to the host."""
  config, device = _setup(spec)
  net = _net(spec, config, device).eval()
  image, _ = _batch(spec, config, device)

  @torch.inference_mode()
  def run() -> None:
    with _precision(config, device):
      net(_prepare(image, spec, config)).float().cpu()

  return _work(run, spec, device)


def preprocess(spec: Mapping[str, Any]) -> Work:
  """Makes MONAI's way of a file to the target grid.

  The axes stay in the file's order but for flips (W, H, D), which saves MONAI
  a transposition that cadjax does.
  """
  torch.set_num_threads(available_cores())
  path, mask = spec["file"], spec["variant"] == "mask"
  load = [
    transforms.LoadImage(image_only=True),
    transforms.EnsureChannelFirst(),
    transforms.Orientation(axcodes="LPS", labels=None),
  ]
  shape = spec["shape"][::-1]
  if spec["format"] == "Resize":
    last = transforms.Resize(
      shape,
      mode="nearest" if mask else "trilinear",
      anti_aliasing=not mask,
    )
  else:
    scan = transforms.Compose(load)(path)
    spacing = np.array(scan.pixdim) * np.array(scan.shape[1:]) / shape
    last = transforms.Spacing(
      spacing.tolist(), mode="nearest" if mask else "bilinear"
    )
  chain = transforms.Compose([*load, last])

  def run() -> None:
    chain(path)

  return Work(run, volumes=1, info={"platform": "cpu"})


MAKERS = {"train": train, "infer": infer, "preprocess": preprocess}


def _setup(spec) -> tuple[dict[str, Any], torch.device]:
  """Checks that both frameworks do the same; gives both the same cores."""
  config = spec["config"]
  for path, known in SAME.items():
    value: Any = config
    for key in path.split("."):
      value = value[key]
    if value not in known:
      raise UserError(
        f"--against=torch does config.{path} = {known[0]!r} only, not {value!r}"
      )
  if spec["devices"] != 1:
    raise UserError("--against=torch runs on one device")
  torch.set_num_threads(available_cores())
  torch.backends.cudnn.benchmark = True
  name = "cuda" if torch.cuda.is_available() else "cpu"
  return config, torch.device(name)


def _format(spec, config) -> torch.memory_format:
  if spec["format"] == "contiguous":
    return torch.contiguous_format
  is_2d = config["model"]["ndim"] == 2
  return torch.channels_last if is_2d else torch.channels_last_3d


def _net(spec, config, device) -> torch.nn.Module:
  options = config["model"]
  torch.manual_seed(0)
  net = getattr(nets, f"resnet{options['depth']}")(
    spatial_dims=options["ndim"],
    n_input_channels=1,
    num_classes=options["num_classes"],
    conv1_t_stride=2,
    bias_downsample=False,
    widen_factor=options["width"] / 64,
  )
  return net.to(device=device, memory_format=_format(spec, config))


def _batch(spec, config, device) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns int16 HU [N, 1, (D,) H, W] and labels [N]."""
  depth, *plane = spec["shape"]
  number = spec["batch"]
  shape: tuple[int, ...] = (number, 1, depth, *plane)
  if config["model"]["ndim"] == 2:
    number *= config["data"]["slices_per_volume"]
    shape = (number, 1, *plane)
  hu = np.random.default_rng(0).integers(-1024, 1500, shape, np.int16)
  label = torch.arange(number) % config["model"]["num_classes"]
  return torch.from_numpy(hu).to(device), label.to(device)


def _prepare(image, spec, config) -> torch.Tensor:
  low, high = config["data"]["window_hu"]
  x = ((image.float() - low) / (high - low)).clamp_(0, 1)
  return x.contiguous(memory_format=_format(spec, config))


def _precision(config, device) -> torch.autocast:
  """bfloat16 as PyTorch's users have it; parameters stay float32."""
  lower = config["model"]["dtype"] == "bfloat16"
  return torch.autocast(device.type, torch.bfloat16, enabled=lower)


def _loss(options: Mapping[str, Any]) -> Callable:
  gamma = options.get("gamma", 2.0) if options["name"] == "focal" else 0.0

  def loss_fn(logits, label):
    log_p = torch.log_softmax(logits, -1)
    picked = log_p.gather(-1, label[:, None])[:, 0]
    weight = (1 - picked.exp()) ** gamma if gamma else 1.0
    return -(weight * picked).mean()

  return loss_fn


def _wait(device: torch.device) -> None:
  if device.type == "cuda":
    torch.cuda.synchronize()


def _work(run, spec, device) -> Work:
  cuda = device.type == "cuda"

  def finish() -> dict[str, Any]:
    if not cuda:
      return {}
    return {"device_peak_bytes": torch.cuda.max_memory_allocated()}

  name = torch.cuda.get_device_name() if cuda else "cpu"
  return Work(
    run,
    volumes=spec["batch"],
    compiles=True,
    info={"platform": device.type, "device": f"1 x {name}"},
    finish=finish,
  )
