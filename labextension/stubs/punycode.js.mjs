/** Names of hosts stay as they are written: the browser converts them when a link is opened. */
const as_it_is = (host) => host;
export default { toASCII: as_it_is, toUnicode: as_it_is };
