"""A model as a server, a phone or a program takes it: a version in a repository of Triton, or a folder with a program.

`deploying` is the order of events; `interface`, `settings` and `triton` say what is written, `repository` and `bundle`
write it, `checking` runs it before it is there.
"""

from bnfold.deployment.deploying import deploy
from bnfold.deployment.result import Deployed

__all__ = ["Deployed", "deploy"]
