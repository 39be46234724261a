/** markdown-it makes one of these and, as we read CommonMark, never asks it. */
export class LinkifyIt {}
