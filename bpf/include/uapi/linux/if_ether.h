/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* bcc names the kernel's path; the UAPI header is the same. */
#include </usr/include/linux/if_ether.h>
