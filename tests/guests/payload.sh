# Deterministic work whose output is the same in a guest and on the host.
#   sh payload.sh BUSYBOX DIRECTORY
b=$1
cd "$2" || exit 1
$b seq 1 20000 >numbers
$b sha256sum numbers
$b md5sum <"$b"
$b sha512sum <"$b"
$b gzip -9c <"$b" >packed.gz
$b gunzip -c packed.gz | $b cmp - "$b" && echo gzip: round trip
$b gzip -c numbers | $b gunzip -c | $b sha1sum
$b awk '{ s += $1; q += $1 * $1; r += 1 / $1 } END { printf "%d %.0f %.12f\n", s, q, r }' numbers
$b awk 'BEGIN { for (i = 1; i <= 20; i++) printf "%.12f %.12g\n", i / 7, i * i * 1e17 / 3 }'
$b sort -rn numbers | $b head -n 3
$b sed -n 's/\(.\)99$/<\1>/p' numbers | $b tr '<>' '[]' | $b tail -n 4
$b tar cf - numbers | $b tar tvf - | $b awk '{ print $3, $NF }'
$b printf '%s\n' pear apple fig | $b sort | $b tr '\n' ' '
echo
i=0
while [ $i -lt 40 ]; do
    i=$((i + 1))
    $b true && $b echo "process $i"
done | $b md5sum
( $b sleep 0.1; echo background ) &
wait
$b bzip2 -c numbers | $b bunzip2 -c | $b sha256sum
$b od -An -tx1 numbers | $b head -n 2
$b expr 123456789 '*' 987654321
$b dc -e '2 64 ^ 1 - p'
$b factor 1234567890123 98765432109
$b xxd -p numbers | $b sha1sum
echo 'scale=60; 4*a(1); e(1); sqrt(2)' | $b bc -l
rm -f numbers packed.gz
