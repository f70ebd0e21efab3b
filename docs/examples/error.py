import numpy as np

from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim.golden import attention

rng = np.random.default_rng(1)
q, k, v = (rng.standard_normal((1, n, 64), np.float32) for n in (16, 512, 512))
s = q[0].astype(float) @ k[0].T.astype(float) / 8
p = np.exp(s - s.max(-1, keepdims=True))
exact = p @ v[0].astype(float) / p.sum(-1, keepdims=True)
error = attention(preset("small"), q, k, v, format=Format.FP16)[0] - exact
print(f"RMSE {np.sqrt(np.mean(error**2)):.3e}")
