"""The methods, one file each; `guidestar.guidance` exports them."""
