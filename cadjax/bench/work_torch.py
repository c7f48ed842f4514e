"""The same work in PyTorch and MONAI; imported in their workers alone."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cadjax.bench.unet_torch import UNet
from cadjax.bench.work import Work, noise_hu
from cadjax.core import lookup
from data_prep.errors import UserError
from data_prep.workers import available_cores

with warnings.catch_warnings():
  # MONAI's imports warn of deprecated names in other packages.
  warnings.simplefilter("ignore")
  from monai import inferers, transforms, visualize
  from monai import losses as monai_losses
  from monai.networks import nets

# What is done here, by field of the config; of the step, and of each model.
STEP = {
  "model.dtype": ("float32", "bfloat16"),
  "model.remat": (False,),
  "optimizer.name": ("adam", "sgd"),
  "optimizer.accumulate": (1,),
  "ema_decay": (0.0,),
}
LOSS_OPTIONS = {"name", "gamma"}
SAME = {
  "resnet": {
    "model.norm": ("batch",),
    "model.output_stride": (32,),
    "loss.name": ("focal", "cross_entropy"),
  },
  "unet": {
    "loss.name": ("dice_ce",),
    "segment.mirror": (False,),
  },
}


def train(spec: Mapping[str, Any]) -> Work:
  """Makes a train step like cadjax's, on a batch that is on the device."""
  config, device = _setup(spec)
  net = _net(spec, config, device).train()
  options = config["optimizer"]
  optimizer = _optimizer(net, options)
  loss_fn = make_loss(config["loss"])
  image, target = _batch(spec, config, device)

  def run() -> None:
    optimizer.zero_grad(set_to_none=True)
    with _precision(config, device):
      logits = net(_prepare(image, spec, config))
    loss_fn(logits, target).backward()
    if options["clip_norm"]:
      torch.nn.utils.clip_grad_norm_(net.parameters(), options["clip_norm"])
    optimizer.step()
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


def explain(spec: Mapping[str, Any]) -> Work:
  """Makes Grad-CAM of the last layer, on its own cells; float32 as cadjax's.

  MONAI's backward pass also makes the gradients of all parameters.
  """
  config, device = _setup(spec)
  net = _net(spec, config, device).eval()
  image = _prepare(_batch(spec, config, device)[0], spec, config)
  grad_cam = visualize.GradCAM(
    nn_module=net,
    target_layers="layer4",
    upsampler=lambda _: torch.nn.Identity(),
  )

  def run() -> None:
    grad_cam(image, class_idx=1)
    _wait(device)

  return _work(run, spec, device)


def slide(spec: Mapping[str, Any]) -> Work:
  """Makes the way of a volume of HU through windows to its labels.

  Volume and sums stay on the device, the fastest way of MONAI's.
  """
  config, device = _setup(spec)
  net = _net(spec, config, device).eval()
  depth, is_2d = spec["shape"][0], config["model"]["ndim"] == 2
  hu = noise_hu(spec["scan_shape"])

  def predict(image):
    if is_2d:  # [N, 1, D, H, W] to the slices [N D, 1, H, W].
      image = image.movedim(2, 1).flatten(0, 1)
    with _precision(config, device):
      logits = net(_prepare(image, spec, config))
    p = torch.softmax(logits.float(), 1)
    return p.unflatten(0, (-1, depth)).movedim(1, 2) if is_2d else p

  @torch.inference_mode()
  def run() -> None:
    image = torch.from_numpy(hu).to(device).float()
    p = inferers.sliding_window_inference(
      image[None, None],
      spec["shape"],
      spec["batch"],
      predict,
      overlap=config["segment"]["overlap"],
      mode="gaussian",
      cval=-1024,
    )
    p.argmax(1).to(torch.uint8).cpu()

  return _work(run, spec, device, volumes=1)


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


MAKERS = {
  "train": train,
  "infer": infer,
  "explain": explain,
  "slide": slide,
  "preprocess": preprocess,
}


def _setup(spec) -> tuple[dict[str, Any], torch.device]:
  """Checks that both frameworks do the same; gives both the same cores."""
  config = spec["config"]
  same = lookup.look_up(SAME, config["model"]["name"], "model")
  for path, known in {**STEP, **same}.items():
    value: Any = config
    for key in path.split("."):
      value = value[key]
    if value not in known:
      raise UserError(
        f"--against=torch does config.{path} = {known[0]!r} only, not {value!r}"
      )
  given = {key for key, value in config["loss"].items() if value is not None}
  if more := sorted(given - LOSS_OPTIONS):
    raise UserError(f"--against=torch does no config.loss.{more[0]}")
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


def _optimizer(net, options: Mapping[str, Any]) -> torch.optim.Optimizer:
  common = {
    "lr": options["learning_rate"],
    "weight_decay": options["weight_decay"],
  }
  if options["name"] == "adam":
    return torch.optim.Adam(net.parameters(), **common)
  return torch.optim.SGD(
    net.parameters(),
    **common,
    # The defaults of `training.optimizer`.
    momentum=options.get("momentum", 0.9),
    nesterov=options.get("nesterov", False),
  )


def _net(spec, config, device) -> torch.nn.Module:
  options = config["model"]
  torch.manual_seed(0)
  if options["name"] == "unet":
    net = UNet(options, spec["num_classes"])
  else:
    net = getattr(nets, f"resnet{options['depth']}")(
      spatial_dims=options["ndim"],
      n_input_channels=1,
      num_classes=spec["num_classes"],
      conv1_t_stride=2,
      bias_downsample=False,
      widen_factor=options["width"] / 64,
    )
  return net.to(device=device, memory_format=_format(spec, config))


def _batch(spec, config, device) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns int16 HU [N, 1, (D,) H, W] and labels [N], or masks of that."""
  depth, *plane = spec["shape"]
  number, is_unet = spec["batch"], config["model"]["name"] == "unet"
  shape: tuple[int, ...] = (number, 1, depth, *plane)
  if config["model"]["ndim"] == 2:
    number *= depth if is_unet else config["data"]["slices_per_volume"]
    shape = (number, 1, *plane)
  target = torch.arange(number) % spec["num_classes"]
  if is_unet:
    rng = np.random.default_rng(1)
    target = torch.from_numpy(rng.integers(spec["num_classes"], size=shape))
  return torch.from_numpy(noise_hu(shape)).to(device), target.to(device)


def _prepare(image, spec, config) -> torch.Tensor:
  low, high = config["data"]["window_hu"]
  x = ((image.float() - low) / (high - low)).clamp_(0, 1)
  return x.contiguous(memory_format=_format(spec, config))


def _precision(config, device) -> torch.autocast:
  """bfloat16 as PyTorch's users have it; parameters stay float32."""
  lower = config["model"]["dtype"] == "bfloat16"
  return torch.autocast(device.type, torch.bfloat16, enabled=lower)


def make_loss(options: Mapping[str, Any]) -> Callable:
  """Makes the loss of a config's `loss`, (logits, target) to a number.

  Args:
    options: of "dice_ce", with deep supervision where there are several
      logits [N, K, *space] for a mask [N, 1, *space]; or of a classifier's,
      for logits [N, K] and labels [N].
  """
  if options["name"] == "dice_ce":
    dice_ce = monai_losses.DiceCELoss(
      include_background=False, to_onehot_y=True, softmax=True
    )

    def supervised(logits, mask):
      levels = logits if isinstance(logits, tuple) else (logits,)
      total, weights = 0.0, 0.0
      for level, each in enumerate(levels):
        step = slice(None, None, 2**level)
        at = mask[(..., *(step,) * (mask.ndim - 2))]
        total = total + 0.5**level * dice_ce(each.float(), at)
        weights += 0.5**level
      return total / weights

    return supervised
  gamma = options.get("gamma", 2.0) if options["name"] == "focal" else 0.0

  def loss_fn(logits, label):
    log_p = torch.log_softmax(logits.float(), -1)
    picked = log_p.gather(-1, label[:, None])[:, 0]
    weight = (1 - picked.exp()) ** gamma if gamma else 1.0
    return -(weight * picked).mean()

  return loss_fn


def _wait(device: torch.device) -> None:
  if device.type == "cuda":
    torch.cuda.synchronize()


def _work(run, spec, device, volumes: int | None = None) -> Work:
  cuda = device.type == "cuda"

  def finish() -> dict[str, Any]:
    if not cuda:
      return {}
    return {"device_peak_bytes": torch.cuda.max_memory_allocated()}

  name = torch.cuda.get_device_name() if cuda else "cpu"
  return Work(
    run,
    volumes=volumes or spec["batch"],
    compiles=True,
    info={"platform": device.type, "device": f"1 x {name}"},
    finish=finish,
  )
