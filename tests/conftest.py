"""One thread, no display, no telemetry; hypothesis quick and repeatable unless HYPOTHESIS_PROFILE=fuzz."""
import logging
import os

for _name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMBA_NUM_THREADS'): os.environ.setdefault(_name, '1')
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')

import pytest
from hypothesis import HealthCheck, settings

_calm = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.register_profile('quick', max_examples=30, derandomize=True, database=None, **_calm)
settings.register_profile('fuzz', max_examples=2000, **_calm)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'quick'))


def _ours(): return [v for k, v in logging.root.manager.loggerDict.items() if k.split('.')[0] == 'posellm' and isinstance(v, logging.Logger)]


@pytest.fixture(autouse=True)
def loggers():
    "Our loggers as they were before: a test that silences one, or calls `setup_log`, does so for itself alone."
    before = {o.name: (o.level, o.propagate, list(o.handlers)) for o in _ours()}
    yield
    for o in _ours():
        level, o.propagate, kept = before.get(o.name, (logging.NOTSET, True, [])); o.setLevel(level)
        for h in [h for h in o.handlers if h not in kept]: o.removeHandler(h); h.close()
