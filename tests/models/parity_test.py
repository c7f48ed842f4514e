"""The same weights give MONAI's logits and gradients; needs `[bench]`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import enable_x64

from cadjax import models
from cadjax.models import resnet

torch = pytest.importorskip("torch")

from monai_nets import (  # noqa: E402 (it imports torch)
  make_torch,
  monai_nets,  # noqa: F401 (a fixture)
  shake_norms,
  to_flax,
  torch_unet_name,
)

# Neither powers of two nor cubes: even and odd sizes at the strided layers.
SPACE = {2: (70, 57), 3: (18, 33, 40)}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
  """Float64 decides; float32 shows what rounding at the ReLUs makes of it."""
  before = jax.config.jax_enable_x64
  jax.config.update("jax_enable_x64", request.param == "float64")
  yield request.param
  jax.config.update("jax_enable_x64", before)


# Largest relative differences allowed of logits, and of the whole gradient.
TOLERANCES = {"float32": (1e-3, 0.1), "float64": (1e-9, 1e-7)}


def relative(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def ravel(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize(
  ("ndim", "depth"),
  [(2, 18), (2, 50), (3, 10), pytest.param(3, 50, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("train", [False, True])
def test_logits_and_gradients_are_monais(monai_nets, ndim, depth, train, dtype):  # noqa: F811
  net = make_torch(monai_nets, ndim, depth).train(train)
  net = net.to(getattr(torch, dtype))
  model = models.get_model({"ndim": ndim, "depth": depth})
  model = model.clone(dtype=jnp.dtype(dtype))
  rng = np.random.default_rng(1)
  x = rng.random((2, *SPACE[ndim], 1), np.float32).astype(dtype)
  labels = np.array([0, 1])

  like = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
  tensors = dict(net.named_parameters()) | dict(net.named_buffers())
  params = to_flax(tensors, like["params"])
  stats = to_flax(tensors, like["batch_stats"])
  count = sum(p.numel() for p in net.parameters())
  assert count == sum(p.size for p in jax.tree.leaves(params))

  given = torch.tensor(np.moveaxis(x, -1, 1).copy())
  theirs = net(given)
  torch.nn.functional.cross_entropy(theirs, torch.tensor(labels)).backward()

  @jax.jit
  def ours(params, x):
    def loss(params, x):
      (logits, _), changed = model.apply(
        {"params": params, "batch_stats": stats},
        x,
        train=train,
        mutable=["batch_stats"],
      )
      log_p = jax.nn.log_softmax(logits)
      picked = jnp.take_along_axis(log_p, labels[:, None], axis=1)
      return -jnp.mean(picked), (logits, changed["batch_stats"])

    return jax.grad(loss, has_aux=True)(params, x)

  gradients, (logits, changed) = ours(params, x)
  expected = to_flax(
    {name: p.grad for name, p in net.named_parameters()}, like["params"]
  )
  wrong_logits = relative(logits, theirs.detach().numpy())
  wrong_gradient = relative(ravel(gradients), ravel(expected))
  print(
    f"\n{ndim}D ResNet-{depth} {dtype} train={train}: relative differences"
    f" {wrong_logits:.1e} of the logits, {wrong_gradient:.1e} of the gradient"
  )
  assert wrong_logits < TOLERANCES[dtype][0]
  assert wrong_gradient < TOLERANCES[dtype][1]
  if train:  # The running variance of torch is n / (n - 1) times ours.
    running = to_flax(dict(net.named_buffers()), like["batch_stats"])
    means = {k: v for k, v in flat(running).items() if k.endswith("mean']")}
    ours = flat(changed)
    for name, mean in means.items():
      assert relative(ours[name], mean) < 10 * TOLERANCES[dtype][0], name


def test_widths_and_depths_have_monais_counts(monai_nets):  # noqa: F811
  for depth in resnet.DEPTHS:
    net = make_torch(monai_nets, 3, depth)
    model = models.get_model({"depth": depth})
    like = jax.eval_shape(
      lambda model=model: model.init(
        jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)), train=False
      )
    )
    count = sum(p.numel() for p in net.parameters())
    assert count == sum(p.size for p in jax.tree.leaves(like["params"]))


@pytest.fixture(scope="module")
def unet_torch():
  from cadjax.bench import unet_torch

  return unet_torch


@pytest.mark.parametrize(
  ("ndim", "options"),
  [
    (2, {}),
    (3, {"deep_supervision": True}),
    (2, {"residual": True, "attention": True}),
    (2, {"norm": "group"}),
    (3, {"norm": "instance", "upsampling": "shuffle"}),
  ],
)
@pytest.mark.parametrize("train", [False, True])
def test_the_unet_is_the_same_in_torch(unet_torch, ndim, options, train):
  base = {"name": "unet", "ndim": ndim, "features": (4, 6, 8, 10)}
  model = models.get_model(base | options).clone(dtype=jnp.float64)
  options = vars(model)
  torch.manual_seed(0)
  net = unet_torch.UNet(options, options["num_classes"]).double().train(train)
  shake_norms(net)
  rng = np.random.default_rng(0)
  x = rng.random((2, *(16, 24, 32)[:ndim], 1))
  with enable_x64():
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    params, stats = (
      to_flax(tensors, like.get(key, {}), torch_unet_name)
      for key in ("params", "batch_stats")
    )
    count = sum(p.numel() for p in net.parameters())
    assert count == sum(p.size for p in jax.tree.leaves(params))

    @jax.jit
    def ours(params):
      def loss(params):
        (logits, _), _ = model.apply(
          {"params": params, "batch_stats": stats},
          x,
          train=train,
          mutable=["batch_stats"],
        )
        return sum(jnp.sin(y).sum() for y in jax.tree.leaves(logits)), logits

      return jax.grad(loss, has_aux=True)(params)

    gradients, logits = ours(params)
  given = torch.tensor(np.moveaxis(x, -1, 1).copy())
  theirs = net(given)
  theirs = theirs if isinstance(theirs, tuple) else (theirs,)
  sum(y.sin().sum() for y in theirs).backward()
  for mine, y in zip(jax.tree.leaves(logits), theirs, strict=True):
    assert relative(mine, np.moveaxis(y.detach().numpy(), 1, -1)) < 1e-6
  # The heads of coarser maps have no gradient where they say nothing.
  grads = {
    name: torch.zeros_like(p) if p.grad is None else p.grad
    for name, p in net.named_parameters()
  }
  expected = to_flax(grads, like["params"], torch_unet_name)
  assert relative(ravel(gradients), ravel(expected)) < 1e-6
