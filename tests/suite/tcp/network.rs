//! Networks that delay and lose.
