"""Package metadata comes from settings.ini, the version from posellm/__init__.py (where nbdev-bump-version writes it)."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here / 'settings.ini', encoding='utf8')
s = cfg['DEFAULT']
lib = s['lib_name']
version = re.search(r'^__version__\s*=\s*["\'](.+?)["\']', (here / lib / '__init__.py').read_text(encoding='utf8'), re.M)[1]
words = lambda key: s.get(key, '').split()

setup(
    name=lib, version=version, description=s['description'], author=s['author'], license=s['license'],
    keywords=s['keywords'], python_requires=f">={s['min_python']}",
    long_description=(here / 'README.md').read_text(encoding='utf8') if (here / 'README.md').exists() else s['description'],
    long_description_content_type='text/markdown',
    packages=find_namespace_packages(include=[lib, f"{lib}.*"]), include_package_data=True,
    package_data={lib: ['assets/*', 'assets/**/*']},
    install_requires=words('requirements'),
    extras_require={'dev': words('dev_requirements') + words('docs_requirements') + words('models_requirements') + words('formats_requirements'), 'docs': words('docs_requirements'), 'models': words('models_requirements'), 'formats': words('formats_requirements')},
    entry_points={'console_scripts': s['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
