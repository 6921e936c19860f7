/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* bcc sizes ring buffers in pages; user space creates them in their real size. */
#define PAGE_SIZE 4096
