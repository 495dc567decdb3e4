// Images as long rows of texels: they run on from line to line, 4096 a line.

fn texel(index: u32) -> vec2<u32> {
    return vec2<u32>(index % 4096u, index / 4096u);
}
