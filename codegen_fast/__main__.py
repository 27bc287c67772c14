"""python -m codegen_fast is codegen-fast."""

import sys

from .cli import main

sys.exit(main())
