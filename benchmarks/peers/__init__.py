# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The loops of other packages, each in the settings that its own documents recommend."""
