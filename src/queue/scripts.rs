//! The Lua scripts, each with the common part before it, and some with others that they share; two
//! stand alone, because they must run where nothing may be assumed.

use fred::types::scripts::Script;

macro_rules! scripts {
    ($($name:ident $(after $($part:ident)+)?),*; alone $($alone:ident),*) => {
        /// One field a script, named as its file in `lua/`.
        pub(super) struct Scripts {
            $(pub(super) $name: Script,)*
            $(pub(super) $alone: Script,)*
        }

        impl Scripts {
            pub(super) fn new() -> Self {
                Self {
                    $($name: Script::from_lua(concat!(
                        include_str!("lua/common.lua"),
                        $($(include_str!(concat!("lua/", stringify!($part), ".lua")),)+)?
                        include_str!(concat!("lua/", stringify!($name), ".lua")),
                    )),)*
                    $($alone: Script::from_lua(
                        include_str!(concat!("lua/", stringify!($alone), ".lua")),
                    ),)*
                }
            }

            pub(super) fn all(&self) -> Vec<&Script> {
                vec![$(&self.$name,)* $(&self.$alone),*]
            }
        }
    };
}

scripts!(
    ack,
    cancel,
    change,
    claim after books turns fair,
    clear,
    counts after books,
    dead_letter,
    depths,
    enqueue,
    expired,
    extend,
    forget after books,
    hand_back after books,
    lock,
    mark,
    misused,
    orphans,
    pass after books,
    promote,
    publish,
    read after books turns,
    reclaim after books,
    recount,
    relock,
    reserve,
    retry,
    sample,
    start,
    tidy,
    unlock,
    waiting;
    alone permissions, write
);
