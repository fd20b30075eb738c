# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What runs have reached, from their logs: a table, a page with curves, the Ascend key files."""
