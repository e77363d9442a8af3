# The table of the chart's values, from values.yaml: `# -- ` before a key describes it.
# A key without a description is a mapping whose keys are described; a description over several lines is one.
# Two spaces an indent, flow style for whole values, as values.yaml is written.
function strip(text) { sub(/[ \t]+$/, "", text); return text }
BEGIN { print "| value | default | |"; print "|---|---|---|" }
/^[ ]*# -- / { text = $0; sub(/^[ ]*# -- /, "", text); described = 1; next }
described == 1 && /^[ ]*# / { more = $0; sub(/^[ ]*# /, "", more); text = text " " more; next }
/^[ ]*[A-Za-z][A-Za-z0-9]*:/ {
    match($0, /^ */); depth = RLENGTH / 2
    line = substr($0, RLENGTH + 1); key = line; sub(/:.*/, "", key)
    value = line; sub(/^[^:]*:[ ]*/, "", value); value = strip(value)
    if (depth > inside && inside >= 0 && block) { if (value != "" ) shown = shown (shown == "" ? "" : ", ") key ": " value; next }
    if (block) { emit(); block = 0 }
    path[depth] = key; name = path[0]; for (i = 1; i <= depth; i++) name = name "." path[i]
    if (!described) next
    described = 0
    if (value == "") { block = 1; inside = depth; shown = ""; held = name; heldtext = text; next }
    printf "| `%s` | `%s` | %s |\n", name, value, text
    next
}
function emit() { printf "| `%s` | `{ %s }` | %s |\n", held, shown, heldtext }
END { if (block) emit() }
