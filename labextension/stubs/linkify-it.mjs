/** Stands for linkify-it, which markdown-it makes one of and, as we read CommonMark, never asks. It saves 12 KB in every notebook. */
export class LinkifyIt {}
