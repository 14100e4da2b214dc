from teas.cli import main

main()
