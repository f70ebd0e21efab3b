#!/usr/bin/env bash
# Makes docs/pictures/gtkwave*.png: waves of one decode step in GTKWave, under a virtual display.
# Needs gtkwave, xvfb, xdotool and imagemagick (Debian: apt-get install gtkwave xvfb xdotool
# imagemagick), and the project set up (make setup). Run it from the repository's root.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$folder"' EXIT
.venv/bin/m890 waves decode --commands 53:55 --latency 40 -o "$folder" >/dev/null 2>&1
cat >"$folder/rc" <<'RC'
fontname_signals Monospace 10
fontname_waves Monospace 9
hier_max_level 2
hide_sst 1
splash_disable 1
RC
display=:$((90 + RANDOM % 900))
Xvfb "$display" -screen 0 1500x1000x24 >/dev/null 2>&1 &
export DISPLAY=$display
for _ in $(seq 50); do xdotool getmouselocation >/dev/null 2>&1 && break; sleep 0.1; done

shot() {  # NAME, first cycle after the first marker, zoom
  .venv/bin/python docs/choose_signals.py "$folder/decode.gtkw" "$folder/$1.gtkw" "$2" "$3"
  gtkwave --rcfile "$folder/rc" "$folder/decode.fst" "$folder/$1.gtkw" >/dev/null 2>&1 &
  local pid=$! window
  window=$(xdotool search --sync --onlyvisible --name GTKWave | head -1)
  xdotool windowmove "$window" 0 0 windowsize "$window" 1500 1000
  sleep 4  # the filter programs answer one by one
  import -window root -depth 8 "$folder/$1.png"
  kill $pid; wait $pid 2>/dev/null || true
  # Title and tool bar are the window manager's and GTK's: the picture is of the waves.
  convert "$folder/$1.png" -crop 1500x890+0+102 +repage -colors 64 -strip \
    "PNG8:docs/pictures/$1.png"
  echo "docs/pictures/$1.png: $(stat -c %s "docs/pictures/$1.png") bytes"
}
shot gtkwave "${1:--4}" "${2:--16.3}"
shot gtkwave-floats "${3:-349}" "${4:--11.9}"
