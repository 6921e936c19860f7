# SPDX-License-Identifier: Apache-2.0
"""What is attached to the kernel: compiling, loading, tracepoints."""
