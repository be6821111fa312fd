"""How much memory a run needs: forecast without loading anything, and measured."""
