"""2D human pose estimation as a course you can run, and the library that falls out of it."""
__version__ = "0.1.0"

# Names reachable from the top, loaded at first use: `import posellm` itself imports no torch, reads no file, opens no network.
_lazy = {
    "create_model": "posellm.models.zoo", "Estimator": "posellm.app.estimator", "Poses": "posellm.pose.poses",
    "Skeleton": "posellm.pose.skeleton", "get_skeleton": "posellm.pose.skeleton", "evaluate": "posellm.metrics.ap",
    "preset": "posellm.train.hardware", "PoseError": "posellm.core.errors",
}
__all__ = list(_lazy)


def __getattr__(name):
    if name not in _lazy: raise AttributeError(f"module 'posellm' has no attribute {name!r}; it offers {sorted(_lazy)} and its subpackages")
    from importlib import import_module
    return getattr(import_module(_lazy[name]), name)


def __dir__(): return sorted([*globals(), *_lazy])
