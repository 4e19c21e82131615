"""What coverage-guided fuzzing found, in base 85: inputs of `tests.fuzzer.attempt`."""

FOUND: dict[str, str] = {
    "a product by a constant on the left, of a channel of scale zero": (
        "2nsp{6l6tX5&~l}PgXy1F58_XX?1Br!U_Rs3IX~7kG$TzyFzq^Xm687a&2L3X*yCB_iv<=023n%3IS;nqJ>ro5&&8V9Zg~q!f^r$"
        "09ulUo)Q88VhlqRV=)E_(HRI52MTF&5&{ZxenJHb0caxH5<;?z-U<R^Fc8Oph3|lXfPg?-?_(E}fD6V#dIqQHmerPHq1X"
    ),
    "an Einsum of sizes that do not meet": (
        "2nag<3kod?0eA`vXJu_|E_Y>VXJ~W^31?+(Z7yPIVRI4$XJu_|8U$x$ZEYe1M`dko3Ni`;crpqMXJu_|E_Y>VXJ~XX3JPasZEY@M"
        "X<>6R5(Q^vZEZ3d1!rY#Z89PRM`dko3L^>(b9G`aV{dMAbYX6E3Iu0mZEX?*b9G`G19Np^A_G%(VhSb-19Np^5(#o;WOZX@ZDDvC"
        "336p*bz^01VR#}5Qe|XyV`WWYcnVMo336p*bz^01VR#A%Vs0*HVQp<;3I}3tE@EYLVG0LgZZ2(QVQvZwVs0*WVRC6<ZewK<0%C3&"
        "0%C3=5<+2gV`xrqa&2L3X?kIFX>V={HVOh_ZW0M>WnpW1a%F6F8VPJ=VQYDEWo&gK2~1^SYk5*-Y;`IR3I$<oaA;u_0000#paB62"
        "I|>PGWnpW1a%F6F3JG#$WOZX@ZDDv424in-V_|d}24in-V_|e6219RdV_|eE3kn2bcxiJO0H6T^3Ox!2V{dL_VRQ-sV-f~sX>N0M"
        "Z5jq;X>N0MZ6XFmX>N0MZ7LWF2xW0~VRUJ4ZXyX`Vk}{LEk1f;paBC4C<+a8bz&}KZ*FsRVQzFX3I=6qZgX{Q5(IN~Vlo;8b9G`e"
        "A_G%(VhS}11!rY#Z88cBXJu_|E_Y>VXJ~XY3JPasZEY@MX<>6S5(Q^vZEZ6e1!rY#Z8IVSM`dko5(IQ*b95?}0SE*L1P}{C3uk3*"
        "Z7z3ZX=iA3N`L|8MMDaYRPw*aY<sB<e)K>6cw&CN+SEV#4roT2ul2tHSN<)_(fGfMSzj!oWzj#JiG+VI^{u~h%NNpp-`YO}z7eHW"
        "`{lo3tJu<!aP7Z%DG5gLyVSqkpb+?o$?Cs`HY61E{`5af5a-k8D)_&}yY||51@J#Ht2Cs{x7)ueF$e?@3qlEJWo>OPVrgM>N+2Hu"
        "#*|F@_dhV8K{N3l|38~x_W(zz=s%O63lrk>;6Eyt0SE*L1P}{C3}<C+Z7z3ZX=iA3GD?5}tVykhKa=^tu#1jnTJ-Zj1GwS`T3E)v"
        "5SpEjS{Uj-MnFZV=djB^vmOPl#CYC6_l#AJ_?po_sCcTc^lbn@##vWj@+SR1zteB!J)h~nSXuyz2Kvpv|Me6Yrf~E>)=(pD)r{&t"
        "eYe15nZ)rw<$y>YYR2@x7W|!+uv_duDl!NJ5DP*IXJu_|E@Ek6b23UG%?&iOvQqg!0U5L`y72iw@Kn<x;d1=HdS*r9CKBSmDl`ZL"
        "5DP*Kb9G`aV{dMAbYX6EN+5{+?y-^j?LXtSCXV}(*}u>wpAc*Qtv~#XuRNXX(LX8}2mufaLI`4RE@xqFZDC3XQ2*uC-!A??Di;U="
        "5DP*FVs0*CWprUm2+jY{6;waeKPndp0T2s92V!n6ZDnC@N(ekUC>&=a<v%JL2mufaLJMMUE_PvZX<=?-Wl9K*?X{ry#;`sroB;?1"
        "2m=rcLIGn+kO8yslkJyI(myxkN(F%F?!P&z<BdxTxIbDgI-}t-(Z97SpMeG%<3B5%btC;^c)vJlX_6uA=)Z`htZ^kRxxej8xKyxN"
        ";y={&{~<H9;J**S(eZG~>OVd**uRk@*1v}Knd)^$?7yq@Zy^r`@V|@?N?)-`;J;!?+;Dsw@;`(o_)XDEvA^Hjc$>y5!9OZ52m=TK"
        "5DP*Lb9G`aV{dMAbYX6EGD;W&i}|pYpTa*=J%*`nUDm&4a6?>Z?he2zRtN+L0uT#A3}<C+Z7z3ZX=iA3GfF`8yrrl?+x9;rN)mDe"
        "Yv?~DLp2W*zS%!PJ%t!nEcCxc#rL<Hm*PJX%S<HOm)1X|JX$i_0@lCU<If+(@8LfxA_xKy3qlHKWo>OPVrgM>GfEI}*O37PuGPPL"
        ">A>W!(6T>T6AA%%5)KLs2n!Mj3IYfN3IYfOS`-Qbcrp?W3JeGf5(o+c2m=ZN2n1pl3Iua?VlomA3JeGf5(o+c2m=ZN2mxXj3I%6n"
        "ZEZ6W4hjqi3lazl0tf>N0tf;^1PTBU5d"
    ),
    "a fold that left behind a tensor stored otherwise": (
        "It58%5+VpmWOR?%t^f)pYL*d+T>&=eXbJ%ha|#7=0qB`7OOri+{F@JNrtzPOdSR<_N!8OmkZ*1}6AQqP3K9lZ<)^`w6t9Co3=#rM"
        "3QPfL5&{4UQxX&sm|_PCX#xtfLIp201)Wv`V=##KfB=A21%Nad#zJ}qr(X%~cw;c_"
    ),
    "columns of a product by a constant on the left": (
        "l?VztPzE?-5^#zlQe_}@(l-hLmdgPJA_P)pFA+aG0CZNFrLQXi5&-6xp@}U62muloVTxuF3I_<zy^Me$fD(cVw<LgofFMFB3gQ4WO;!"
    ),
    "a shift of these columns": (
        "l?VztPzE?-5^#zHQe_}@(l-hLmdgPJA_P)pFA+aG0CZNFrLQXi5&-7WOf3Tl0TLHsie?fD2MEr+jDR2tfD(cVw<LgofFMFB3gQ3"
    ),
    "zeros stored again and again": (
        "It58%5+VpmWOQkC*scHyC2E!tiCqC`3IPps3TambaslX>E=!X=fBc&dZ>I5|ih5zIa!J+GJ&<p1Iui@Pj|vh7R^_L`l@zaoKnxNB"
        "OEwBj0ca8e018tQ6cU(X2MTEd3bR55FEj<6RuBpTV=##KfB=A2*Rw%17{)?+2B%*M?!)$YV=(O"
    ),
    "a C that is stored again and again": (
        "2nssO6l6tX61ESY`(rUrR;KhxWONAYdkQ5?3IPfMa|!{E+`Iw2cD%bnAc$q>Xm4`XxokybI#Lz)Z*DpO6VnR{0cpE35~77x3DjZ|"
        "0tx_HN=yN05&}330uEy_5(Wy<83+;pVh0LDgK64w5&{Zx*WP|YRtf=VBH9v=3Iby=5P*PyfPjF2fLrH)3&uiv2A0(d0%I_E_W"
    ),
    "a shift that cancels between nodes that left": (
        "_(nPf;(+ZHV-f-)2uWmgd#(TqB}@td0S$8s0gt=^b|ONCXqs)NY-xI7t8z*AZ*DphBMS-=1`1XQoa~em06>xw0$L6VOaW*T0svwR"
        "3U^Uc5)|kX(HRI50AdFUX>t+*3WvkqC$mBY3Y`!S3UFgEt?-EVfPjF2Gz-Rh2Gt4zcw;a"
    ),
    "a reference to an attribute of no function": (
        "2nagH2MRd~0eA`vV{dMDE_Y>VXJ~W^31e?=b}nLRVRI4$V{dMD8UkW&A_PNkZgwgR3I%6!Z*_1O0iXc_3N;D@V{dMD3Jh&^Y%XJO"
        "ZgX^DZgdg@ZFOuK18sF|A_GlzY$^~631V_@VPs=rb95L1paB939SQ?&b!-X&V-f{$a%F6F8U=82Wo&gK1yE9DY;_7R3I%X-Wo&g4"
        "2Xk*`bZudH8V7T4W^`>~cp?W=Z)S9DVR$MF3It(zX>%9>paB93UJ3_uZ)S9DVR#A%Vs0*HVQp<;3I}3tE@EYLVG0LgZZ2(QVQvZw"
        "Vs0*WVRC6<ZewK<0%C3&0%C3=5<+2gV`xrqa&2L3X?kIFX>V>S4hjcpb6<32b95L1paB93GYSG?ZVCf!b!-v_V{dL_VRRY>V{dL_"
        "VRRw}LvL<lVRR}G3It(zX>%9>paBA^0Rm!f3PcJ9V{dL_VRQ-%VPs@3V{dMAbYX6E5(8mmWEuluWMm=(L1bhq3kn2bcxiJO0H6T^"
        "Di8_@VsdX`WMg4-bQl4k0Rj>PbY*jNDw+WZ1PBBO0SEyQ3qlKHZ*F!jcV%g3Xmm<|0h#N<7Rl4XKi=xV?t8iLzuD2sr~E7bKP5zr"
        "H8}g=zb{ULq^I=TKLW>mPMAyRzZ4%3*gI46zcY&;TxaUjKk$0}wKdq|zYNC5;dcJCzby)LtNHf6zi4+;b|7*Bz>B$npzQ?dKY#Gp"
        "WNg0kzt{i|d2)l&Kc^l+8-t?2zbY{Z1P}{C31e?=b}nLRVRK3#*{^o$!tMaT_q}MzUdzZo$A53)3{2v`xEqT0t?To@DjE<ALJVzn"
        "Y%XJOZgX^DZgffrW@ct)W@hF;Dk%sA5DP*9V@e=2XGmSZ<JP}+#Jow>sOrD70F>$B4zfSV|7<wUN6<eiFbD(?3qlBDZZ2nGZEayn"
        "AmXUmcYjs-KiWb&ePdbqzW@LL000000Q{-((oJGeKPoQ>1P}{C2V!n6Vr6t;N+8+^6+FIY)xVipltX|#=f5N5Dp*y@@4vf)fe3lC"
        ";lC;`2m}xdLI+}QE^TFDZb~3h_($2+Uh6+PKuH%7Fxfv<y&I@zBLYB15U9}VX#2k^GYA9_3qlKGZZ39Va%o|1V`WMp0000000000"
        "RSFW$)GzcuLOT@C?qcyjtG;c|2*U9{DkKO35DP*KVPs@3V{dMAbYX6EN)RF5mbG1+<3G}FHgZc8*FRbt3ITW$777#y3lb0t0tf;M"
        "0tf^O0tf^O0tf~|1PTBU1^"
    ),
    "a mean that is rounded": (
        "t6@6)XgFgMa3T+i1X5+IUUR<zpl~7tQe`h5w>toI101g-?h*jz?Gkgl$Pyq514G~k2!McqMaMw`w}5~)^MD{i1cM3^LIfo;gU}FE"
    ),
    "a softmax of two, of a large shift": (
        "2nsq-c{pPdaEd|%Qe~@N3IU)D0dOJ&WiK8(0CZxfuPXr(n$Q4_0|)^U0}=`cKY)OM*?@q6FQG&V0)At+fPjF2fFMEy3KBw`0DplH"
    ),
    "a bias of merged products, opset 6": (
        "s99$rAv$*o6j=ge%n|})%DGtnZggpMNxuLJB?<v(0f2J~0RfM^p9%qjR2DIGOl(dg2RLkLdSQ$RdZ#ctxI}MaYH1P%3Iqtvf(inn2MUO"
        "25@*E*Vhmq_0%I`}mFwcWBU{(mR|o?VVgYgzaHR?W7&8TSQ2}TYLJta_V=xea0o{OrfPjF20YU}}0%I@`0R"
    ),
    "a logarithm of a softmax that is nearly one": (
        "I=^9b^<xqu2*zw=blCX-3MEW9(t(Q8XbOY{eGPK~0d^uiDZTug4{xSyHHvy+tDoh$Nk2W1Iuj#)3WLG0&_E0l0$}k92MSC95&{4UcmmH"
        ";5)|lL5}0BK3Td-K1uqGm5DEfg_kaL^fPltGdIqP}3GQq#|MoB"
    ),
    "the sine of what goes into the billions": (
        "2nsqUYYK}PFcJa}A_z%kZggpMdqX^~0173fxoDua3ITHp0RfM^KY<DXb|MlnQ<g$ubYogQPH&TKo?&!pZ*Hj0Isg({3km^g5}XPI2niA"
        "Z-p>dM0%IC566!*S3Ro2*!)Ou$3IN6m0tR!L2wU|M0|9ck3IIX{js9pt3IY&-fPjF2fPjF20Yc9T0%I@`0R"
    ),
    "the difference of two numbers of 1e19": (
        "aSA$(0SXcd0&i{-Zhy8S2uZ^lyx?whX><xn8VW;mbYW<g!etT#b9CTrdKv|88i!?NXA)x6^>1W(S_%pTbl@{}a&8g=B3cRpZ;0a(1_}f"
        "S2@+KoSYdQ!Vh;{!Y$a?G1_~lfO3DP72moSw26Aa`Ze?;X5(Wwc2+9Cre<uZVbZKmC5(Wea2@(K805H%"
    ),
    "one shift for every column of a product, opset 6": (
        "mcR-+e*$B(+@KO%o&xTVk0J;qDM=4>X>@z80165L3IV*|qycs!5<+2g>{_r+Z*pzfkZfssVRSPRS_=wkWeTYY0L#pE5tHQt3cvhuyV~?"
        "Y3IHNv3<6_@1`5#`BU(=g01?m%v7Kqg%R&kO&O#DGA4y|?fPjF2fPh+O3&xzdD5uq9x&"
    ),
    "an Einsum of sizes that are not known": (
        "t62s(V-j$R-m=K4C{k;bWsurlbH4$ga8l?+FCMoa1ORjc9Iq<@ZW3JsyT}sqvN!`nV+scdfPjGXL4xDtxqvpi@_-=n3KDNZ1R1b{&=6D"
    ),
    "a bias of merged products, stored for every row": (
        "d^!bKV-g|=Nn~``t^f)p`4Nd-0cZ*V4Rgyi0qB`7OOrjU-w$u5pYXz+t8z)z(>;)H4sJRV3&4*G5(ZY~r@@sJ*+2{unoDvDOaW*T0ssn"
        "A5``HE5}0BK3JSAA1uqZ^Fn|DnRt11G7{)>kr(X$UFa"
    ),
    "a shift that a variance of 1e-6 left little of": (
        "2nsp{;($eC5{MkjYW=3J2uWmgX>@z80172c8B*{#HVOd&0lWcrB6EUthH#o;Y-xI!N%yR7Isgj_0a+3Tg;ohb3X2~K3<O#S3QPgWXc7V"
        "dV$KQz&r|4pA_f&12y__|003!{;spu;Xb=y>3IbzQ5chx!#$-==waXD>Fa"
    ),
    "a product on the left, its rows stored alike": (
        "l?Vzt1~_AIiUd++Aa&9=3IUeO0R<uiQe`g@KRW<)R+*)*D*+M!=9eu42muloVTxuF3I_<zy^Me$3V;#{w+{?}fFMFB3gQ3"
    ),
    "a merged shift whose terms of 1,400 cancel": (
        "dYd|p0SZ@d6mM=4ZnY^%!y3HcZggpMc^Z$-F;1p*WfGVg1#X#PhtFj&eZyw}oMLZed0IlEb#iVJ0tx^EZxRLy=SLD%j0y#`cV%J^4ry#"
        "`5(bMh3IqrMVjl)+ZrMT-1_;Vx51k4Hb98BJY!U_p2v(GE!X**_LIetvFa"
    ),
    "a merged difference that is zero, its bias for every row": (
        "eU`wt3OWV60%I`t0`4M7*AIbo*mP8`0171v0SW<_A`(I)P;~5Cu%dF9Z4Di1dSP@4cWy2P;SyTS6l(#Eml6inZ>|ymS_nW23cm+Mal0f"
        "zNT><`VhjRfh6V~5w><~|Vh2`!9Rk^@LZ8i+5<<fPFie1efc;{CfPjF2fD6V=5J=SuV*"
    ),
    "a constant that is normalised": (
        "I#32UV-j$R1X5*Jt6p^q0iX;4a3Ta!Ww$%HGXQjAr>`pk5&-6=&;b%43Ih`E3I_;)fPjF2APRsIHh_SDfFMEy3Vad@00"
    ),
    "a Compress along an axis of unknown size": (
        "2nu-x;u3>G2y}FNt|d$j-U=-80S$8sTbDHfkGuiY<sw3cL^Q~TXd802ZER_J8~jQ4Z*DpO3IS;nx3vmZ2@(K63N>2*unJ7vXaYX_4k&K"
        "A&$@o-(H0020EGt%X%hkpvqA;Jt`O)9#R6k6i1&a1fXabFdIqP}vI_gczxOcN&H"
    ),
    "a Loop of 2^31 turns": (
        "2nsro3JN3&0eA`lcM<_%A_PNkZgwgW3IuRrWOG0PKmkAjKmniu2RZ->C<*~#3ITHp0b&XPZ3+Q)5&>f(5<+2gV`xrqa&2L3X?kIFX>V>"
        "i0171%0d67)LvL<#bYX6EDijI{c42IFWnXD-bQpkufPe^~0RlPz3L_E&Z*FBG2t#jfb97;DbSe-E33g#@b!A^^Zgdy|paB9p016xm18;"
        "6+5&~y$A_PNWb95>R3IcR*7zv;O0y+Q+@d63~ZVCctZwdi;5&?N41Wa#la4OjX3It+rWO*{p0tyrg0%I@|0%I{E2uWmRZggpMc{%_JDG"
        "~&FWpZyK2t#jfb97;DbSf1J3wB{_b!A^>Y;R$76#xJL0H6T@IsghF3ITW$1Z{6~bRr2-Wn^_@WldptDhLVzcNhSm0RlPz3K|LoZEtgQ3"
        "Iuv(a&Hm=Ya$0na%Ew3WpX+I3W@;=0c#Qgav}mrW-3Su3v_5@ZeL<@VQyn+GByej3ISsZ0ca8da3TXiWMn!35&?8#9|{3z5*i8^2mull"
        "3Ih@WK?(yB0YVA`5&=UB0}=s5paBIcG71Z2Y;$E_Vsc?_V`wrU3K9wdXbJ&i3ITT#03riZbz(XI5&>mm2MPgk5&{YUpaBIs01^RgS`rE"
        "YX%Y(x2?z%g1quTa0YV}GS_ldPV=xi|IsjS+3IS*m0tx_P2nqsYF%kkI0AdRY0df)s3IqrN5&)n91v&r{0cR@E1PBBO1PB8N0}ug10e4"
        "Ek1Z$oGKm?E@zzq@BK3Q22zox<GzJbMDzH~<cz^;F7zMFnszXq&SK$|pYJ_d}mzUTyyz7_>5zbp@jzY!P6zKp^4K4wRBzO65HKkk@JzW"
        "=+%Jayg0KM9NrKde>(za%<4zT004KliZrKdlRjzH(=IzR*j6KML<+zgt|Dz7y_YKhlvDKOAklJ@$($Kb!zHz%ROjKS!%|zgCsizf6jaK"
        "Iv97KaaTMzN^QHzrO?4Jdh1oy`<{1KOt5>Kb&_)KL1IMKcaL}zQG4=zu1HoKRqE8KOFp9z9nWzzfz}aKKGj+zyz!?KcAHQJ`%>!ztK&5"
        "Jv`5LzdhMOKg=%zz)&1&zX_)`Kl22XKf@dfz!d-fzCiM)K9}_yzZsg#KOTCRzcz)nJ|{AUznJ#3KkHqwyr7r9zI^T5zYj*&KN+?_Kac4"
        "^KNzNwKhw>!KB}c7znt7mzv$UazldJ1KgI33zpSemzZH6<zK8;5J{d|AKWXBhzZG%azeJ^wyAM{IKab8qKabN~J~?8dzPcioKGiIFzH>"
        "BDKj&aezcO|SKC<BAy_y*dKcoj{KEyL4K<m@LKNXd~KRbs4!23O}zUa*xzj0s)Ka$%K!1+~{Kk1T)KSHXezbJxwznmFOzYA9}J+2lcKa"
        "mgvKqD_oz6^UrKiMT8K14;~KM(#rKdCIQKSS|}zrfl=zGPESzaFB%KNnjlKjb@{zTc_mzW*ioJ~ovzzY{xdznp3IKJ}v=KyM0szA70A1"
        "P}p20dq<aI86?}c<7bCq~WT+O=Si@Dj5g_5CK8~VoDG?&RIW_Q5HOAN2)%oW$isG83+Ur0YU+7N)U<r4L&Ye!@qit>b^ry<UJ}G2m}xT"
        "LIHM45UfR)K8qxwKb}?tKN5n<KUy9N0eBJ_3Ks|g5)%po5&=#M0tf^O0}=su3Ih@WS3(2|01y&F1quOX5CH"
    ),
    "a Split whose parts are of unlike magnitudes": (
        "2nsp{yaHn|5&~l)2uTlgX?c6D3O?T8@O}ybN4%-R@Oc4tA`(LEjZA}Ya&2L3X@1f^F?wNXZ*DI8eG*y=3TYAs3RaHM+m8r93h>MV3cm-"
        "dc6~)jzFC^28k2umBXD`KopNh0)5vL-4+@`58oJMbu7H4mfK-9Tr(B+6Vg"
    ),
    "a Resize of a region that lies in front of the image": (
        "2nsp{6l6tX5{&dQ1_()HbZK;Zt^f)p(gF8(XbJ&y3IQ3s0jJnubcUA9Ik|0NYzVcGcK6Ku?rv0BhKaCnI137{HFoe;2@(KW5&{Zz-3m-"
        "-62Hd)3<?6<G0h6m8SL0%2LW;t0;WNJ^9liI5E4QUwJ;EX*9m}ti0eZaJAky#Ld;ACXKr="
    ),
    "a shift that cancels where two store one tensor again": (
        "l?VztPzGZXaEb&{WgvA3P2dp<0XF=0wP*n%1X5)$5kJ9J>ZPwM0Uw$G*Jw(YG5ak84hR7fAY_Uz2R{rhD962kAlDM@fr2D}fI`F~ss"
    ),
    "a channel whose shift is small beside that of another one": (
        "2;_$a6l6tX5&~l}B5e?2No2=#g#ZdAObP*L3IQ|<0RfM^0d^unbcT$)I{a;6+H^_vZ#n=IBLQg=k%Cz#KngGt0w-_R=n6~$%?rfuDTuo"
        "a3Iby>5>*)p5|_^aVh2?Ma()T{5<(9GV=xeafCqqpfPjD@-9mb&0%H"
    ),
    "three BatchNormalizations of tiny variance in a row": (
        "l?VztPzE?-5^#zHQe_}@2u<J-3IR5DwP*n%1X5)$5kI-}J605>Je>g_ngG{mN`})h`z-?w2mulx5@r%E2gkjDXCM;ofwB}N>>ndS#3B"
    ),
    "a merged Mul of an old opset along rows": (
        "oC-R*Lt`ud5^#zHQe`yS(Z;~tU1M+}1bWU09=AIHbjY@)O1}W5m-PV>@(M*v3RVX!(E6u<An@C<3V;%V3Q<y3fB}FYLIetJ6G8+4s%Q"
    ),
    "a bias of a product by a constant on the left, for each channel, opset 6": (
        "mcV}kW86<gMh~Df(TkuN+LB2RbZN~{!9zCNm(dCV3OiT<yx;!;n$=s55@GG+DFnPG8cuI=Y-xI7bZKtnkfst^3-<;JW=jdGx&SdTqCgQ"
        "a3cm-t4gexz3<idFOVJr4T0sZ^?yuAevAw=R3N6^q`6d!VA5%$pPCqaZfPjF2fPlOU#+(deDY^"
    ),
    "a scale of merged nodes that is one, up to its last bit": (
        "2nsp{6l6tXFk><AJ|YN7WOQkCd#)3r=OqdOD0*lL0doog0gt?vvI+rqA`(JjbhBtCVQgu5VN7dD_it`G015$V5(WxZ00=;*5&{YU3QPf"
        "L5&{YUVhjrFOafyu5?RqT3UU$xkqQ7p1sLh4Lue2}8VUk15P*PyW=f>yfPjm72B*~u0%I@"
    ),
    "a product by a kernel, of a width that must be one": (
        "2nsrt1PUn<1bSt1Zz2doZ*FsRVQzFP6$%S>VQh6}UuJA?VRRJ$0001>0RcJy3MUEycoGC{Z*z1a2~uTbbz@~sVR$MJ3J7auWpHF^ZF3j"
        "^paB9p016rk1Z{6~bP5D|WpZy40c#=$M{;FhbY*fn01EK|3IS^p0eK<<NoFdW0SXIrXk~6+Vsc?_V`wsn0SXif0eA`mcQFzHW+DbnVRT"
        "J(Y&rl6B?<v^5&>!=3Q}ccbz@~sWnpeA4+;otWo2+=X>D^D0H6T^Isgg~3IS#c0csKfWFiAib!<8S3J?kbWC{Ul5&>``13_eDIsg&@bY"
        "dS00dNu;3K$3h5)=vp5&=O90}=s33Ih@WLka^D0YriU0H6T{Dn$wlWo&b0Ut)4$ZewUNGYSm~0eBJtaUugwWoJ475&>mm9|{3+5*i8^2"
        "mull3Ih@WK?(yB0c8pU5&=UB0}=s5paBIs01^RbDo_Xn2m}ZL2mufQLIQU&N<eF#0zd?iBft$2);?KT5x=Iv=e~i(T)uQi0l=<*ZN8g+"
        "UB3pbR6v_FXFdjuw7%#BkiHfLE59rchrbaQ$i6BW2m}xTLIHD15RAe0K4wRBzO65HKkk@JzFHm%0eBJ_3Ks|g5)%po5&=#M0tf^O0}=s"
        "93Ih@WS7ILu0eKP{3K$3h5)=vp5&=O90}=s33Ih@WLka^D0YpLs3IGriLInx|W)J}"
    ),
    "merged products of rows and columns that are constants": (
        "l?VztPzF(B5^#zHQe_}@2u(K%0kvoWA_SvQQe`hY0CZNFrLQXi5&)t~mn{Pb0TN`2W)cbqO^pmY$Gw0c3KH#-f(j&nfPf$h(*O"
    ),
    "a merged factor that is one number up to rounding": (
        "2nt$~jRrVlMxzpNiXOYGUUdoqeMz9Yu>?{t9=FGS0CZxfO9(3g5&-4{2mulx3Ih@f1b~1a?SLQ(fD(cV0=IyGfPlU0fFMEy3KBvD3S6x"
    ),
    "a shift that two nodes store again is off by the rounding of larger ones behind it": (
        "2ntkC1~_99aI8{gAQS<q0ec0ra3Ta!YFaONI{*!*uPXr(0OkV-0TLhz0}}BH2Pn@7RDghY`HT|IDyz4EfPf~RfR7+T1PT%&LaSd8"
    ),
    "before opset 7, a bias of merged products that stands for each channel and not for each column": (
        "s99%BjPG{}6j_h4%n|})%DGtnZggpMNxuLJB?<v(yhwlw-vN)jp9_Li7BO^8Y#awTY+;OE0y?-vYH1SEF9d?32aB`dXcA||24W0ffdXS"
        "O5|tY859{LABZ2u_*Tgvz0|)~WVgdc;3gZQKXpcP)3NR3W0o{OrfPjFlLIw%~0R"
    ),
}
